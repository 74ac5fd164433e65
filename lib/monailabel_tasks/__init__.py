"""monailabel_tasks."""
