"""Parts of the load test of `surefoot label`, which tests use too: the server as a process, a browser without a screen."""
