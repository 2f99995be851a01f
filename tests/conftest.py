"""For all tests: the promises they hold are recorded."""

pytest_plugins = ("tests.support.promises",)
