"""Read exported files, and run them with the interface of Detectron2's models."""
