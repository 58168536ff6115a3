from tests.data.conftest import folder, samples, source

__all__ = ["folder", "samples", "source"]
