"""``python -m medlight``."""

from medlight.cli.main import main

raise SystemExit(main())
