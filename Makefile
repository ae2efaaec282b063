# placeholder until the founders write it
