"""What a recipe may say, as pydantic models."""
