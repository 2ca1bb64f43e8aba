"""Values: what a cluster file says, checked, and what follows from it. Imports nothing of this project."""
