"""Learning a novel-view model (3DiM), and using one: a picture becomes an object."""
