"""TFLite files read and written."""
