#!/usr/bin/env bash
# A real Slurm on this machine, for tests/test_grid_slurm.py: one_node.sh up|down DIR
# Needs root and the programs slurmctld, slurmd and munged (Debian: slurm-wlm, munge). Then: export SLURM_CONF=DIR/slurm.conf
set -eu
verb=${1:?up or down}
dir=${2:?a folder for configuration, state and logs}

up() {
  mkdir -p "$dir"/{controller,node,log}
  cat > "$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/controller
SlurmdSpoolDir=$dir/node
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  if ! munge -n > /dev/null 2>&1; then # the keeper of credentials, which has a user of its own
    mkdir -p /run/munge /var/lib/munge /var/log/munge
    chown munge:munge /run/munge /var/lib/munge /var/log/munge
    su munge -s /bin/sh -c 'munged --force'
    for _ in $(seq 20); do munge -n > /dev/null 2>&1 && break; sleep 0.5; done
  fi
  export SLURM_CONF="$dir/slurm.conf"
  setsid slurmctld -D > "$dir/log/slurmctld" 2>&1 & echo $! > "$dir/slurmctld.own"
  setsid slurmd -D -N localhost > "$dir/log/slurmd" 2>&1 & echo $! > "$dir/slurmd.own"
  for _ in $(seq 60); do sinfo --noheader 2> /dev/null | grep -q idle && return; sleep 0.5; done
  echo "no node came up; the logs are in $dir/log" >&2
  exit 1
}

down() {
  SLURM_CONF="$dir/slurm.conf" scancel --me && sleep 2 || true # no job outlives the test
  for name in slurmd slurmctld; do kill "$(cat "$dir/$name.own")" 2> /dev/null || true; done
}

case $verb in
up) up ;;
down) down ;;
*) echo "up or down" >&2; exit 2 ;;
esac
