"""Results of a search: as data, then as a page, a table and logs."""
