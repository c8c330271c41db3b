"""The reward of a completion as a sum of weighted terms: built-in ones, and users' functions."""
