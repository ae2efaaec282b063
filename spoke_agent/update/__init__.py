"""One model's update, from the hub's directive to the serving slot: state machine, planner, executor, controller."""
