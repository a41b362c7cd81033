from lapinfer.__main__ import main

main()
