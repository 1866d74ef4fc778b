COMMAND="command"
def write_results(study, folder, objectives): pass
def log_results(study, folder, objectives):
    for t in study.trials: print(t.number,t.state,t.values,t.params,t.user_attrs)
