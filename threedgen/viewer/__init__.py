"""Looking at runs: the report page of one, the gallery of many (HTML that stands alone, no torch); the live view."""
