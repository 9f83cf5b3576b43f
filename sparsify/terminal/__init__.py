"""The command's output on a terminal: tables, texts after the help, progress bars."""
