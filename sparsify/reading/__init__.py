"""Reads data as arrays, with numpy and Pillow and without torch: archives, encoded images, scikit-learn's digits and photographs."""
