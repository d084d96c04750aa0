"""Make tiny random models of every supported family, for tests."""
