"""What pages are made of: plots as inline SVG, tables, and templates. Nothing here needs torch."""
