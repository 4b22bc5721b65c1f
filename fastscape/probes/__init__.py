"""A folder per question: the function, its result, and how that is shown."""
