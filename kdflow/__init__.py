"""Knowledge distillation as a pipeline: every number of the paper is a build target."""

__version__ = "0.1.0"
