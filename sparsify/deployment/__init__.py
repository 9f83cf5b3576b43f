"""The building blocks of fast files: weights packed into small dense matrices."""
