"""What the command shows on a terminal: tables, texts after the help, progress."""
