"""The headlines of the field, each as a benchmark that anyone can run."""
