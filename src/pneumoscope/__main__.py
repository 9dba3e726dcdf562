"""`python -m pneumoscope` is the command line."""

from pneumoscope.cli.main import main

if __name__ == "__main__":
    main()
