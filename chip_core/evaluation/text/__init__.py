"""Read answers and judges' replies; language tools."""
