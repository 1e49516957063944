"""Parts of the load test of `surefoot label`, which the tests use too: the server as a process, and a browser without a screen."""
