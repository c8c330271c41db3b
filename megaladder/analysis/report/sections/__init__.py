"""The sections of the page, by where their numbers come from."""
