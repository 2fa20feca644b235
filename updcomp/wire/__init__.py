"""The wire format: packets of integers, their coding into bytes, and their exact application. Needs NumPy alone."""
