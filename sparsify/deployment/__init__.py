"""What fast files are made of: weights packed into small dense matrices."""
