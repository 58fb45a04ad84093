"""The tests. A package, so that nothing that is installed takes its name."""
