"""Notebooks into a report: opening, parameters, checks, runs, pages, comparison, the command line."""
