#!/usr/bin/env bash
# A Slurm cluster of this machine alone, with accounting: for tests, as root, on Debian or Ubuntu, in a container too.
#   slurm.sh install        the packages, without starting any service
#   slurm.sh start FOLDER   munged, mariadbd, slurmdbd, slurmctld and slurmd on free ports, all their files in FOLDER;
#                           commands find the cluster by SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER    end these processes, by their ids
# Partitions: low, whose jobs may be pre-empted and requeued, and high, whose jobs pre-empt those of low.
# A requeued job waits for cred_expire seconds, 10 here and 120 where nothing else is said.
set -euo pipefail

PACKAGES=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core)
DAEMONS=(slurmd slurmctld slurmdbd mariadbd munged)

install() {
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # RUNLEVEL: Debian's scripts start no service
    apt-get update -qq
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${PACKAGES[@]}"
}

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

until_ready() {  # until_ready SECONDS COMMAND...: wait until the command succeeds
    local end=$((SECONDS + $1))
    shift
    until timeout 10 "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "slurm.sh: '$*' does not succeed; see the logs in $folder" >&2
            exit 1
        fi
        sleep 0.5
    done
}

daemon() {  # daemon NAME COMMAND...: start it in the background, its output in NAME.log, its id in NAME.pid
    local name=$1
    shift
    setsid "$@" >"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
}

write_configuration() {
    local name password
    name=$(hostname -s)
    password=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    read -r mariadb_port dbd_port controller_port node_port <<<"$(free_ports 4)"
    umask 077
    head -c 1024 /dev/urandom >"$folder/munge.key"
    cat >"$folder/accounts.sql" <<SQL
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
SQL
    cat >"$folder/slurmdbd.conf" <<CONF
DbdHost=$name
DbdAddr=127.0.0.1
DbdPort=$dbd_port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$mariadb_port
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct_db
PidFile=$folder/slurmdbd.own.pid
CONF
    cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/node
SlurmctldPidFile=$folder/slurmctld.own.pid
SlurmdPidFile=$folder/slurmd.own.pid
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd_port
AccountingStoragePass=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=10
MinJobAge=600
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=$name Default=YES MaxTime=1-0 State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$name MaxTime=1-0 State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

start() {
    trap stop ERR EXIT
    mkdir -p "$folder"/{controller,node}
    write_configuration
    export SLURM_CONF=$folder/slurm.conf
    local client=(mariadb --no-defaults --socket="$folder/mariadb.socket")
    daemon munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.own.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munge.log"
    mariadb-install-db --no-defaults --user=root --datadir="$folder/mariadb" --skip-test-db >"$folder/mariadb-install.log" 2>&1
    daemon mariadbd mariadbd --no-defaults --user=root --datadir="$folder/mariadb" --socket="$folder/mariadb.socket" \
        --bind-address=127.0.0.1 --port="$mariadb_port" --pid-file="$folder/mariadbd.own.pid" --innodb-buffer-pool-size=64M
    until_ready 60 "${client[@]}" -e "SELECT 1"
    "${client[@]}" <"$folder/accounts.sql"
    daemon slurmdbd env SLURM_CONF="$folder/slurm.conf" slurmdbd -D -v
    until_ready 60 sacctmgr -n show cluster
    sacctmgr -i add cluster tests >/dev/null
    daemon slurmctld slurmctld -D -f "$folder/slurm.conf"
    daemon slurmd slurmd -D -f "$folder/slurm.conf"
    until_ready 60 bash -c "sinfo -h -o %T | grep -qx idle"
    until_ready 60 bash -c "sacctmgr -n -P show cluster format=controlport | grep -qvx 0"
    trap - ERR EXIT
}

stop() {
    local name pid
    if [ -f "$folder/slurmctld.pid" ]; then
        SLURM_CONF=$folder/slurm.conf timeout 20 bash -c 'scancel --user=root; until [ -z "$(squeue -h)" ]; do sleep 0.5; done' || true
    fi
    for name in "${DAEMONS[@]}"; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
        rm "$folder/$name.pid"
    done
}

case "${1:-}" in
    install) install ;;
    start | stop) folder=$(realpath -m "${2:?a folder}") && "$1" ;;
    *) sed -n 's/^# \{0,1\}//p' "$0" | sed 1d && exit 2 ;;
esac
