"""The kit of files, tables, figures and pages; it knows no probe."""
