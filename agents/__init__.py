"""What makes it happen: everything with a socket, a clock or an await."""
