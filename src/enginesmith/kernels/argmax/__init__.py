"""The place of the greatest or smallest element."""
