"""From a plan to a folder, and what a subject or a plan consists of."""
