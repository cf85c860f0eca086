"""What priors and objects of the toybox are worth: a probe that looks at pictures, what it should say, the reports."""
