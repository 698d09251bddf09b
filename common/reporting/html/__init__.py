"""The report: one HTML file with every table and picture."""
