"""RecipeCLI with all classes in YAML: ``python -m optimplug.lightning fit -c config.yaml``."""

from optimplug.lightning.cli import RecipeCLI

if __name__ == "__main__":
    RecipeCLI()
