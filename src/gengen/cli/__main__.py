from gengen.cli import main

raise SystemExit(main())
