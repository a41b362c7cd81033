from lapinfer.cli import main

main()
