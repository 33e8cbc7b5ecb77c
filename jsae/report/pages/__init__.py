"""The data that the pages of the report show, a module for each page, and their rendering."""
