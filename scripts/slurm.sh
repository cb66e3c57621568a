#!/usr/bin/env bash
# Trains on several machines of a Slurm cluster, and is queued again before its time is up:
#   sbatch --nodes=2 scripts/slurm.sh experiment=co_dino_5scale_r50_1x_coco data.root=FOLDER name=NAME
# Lightning reads ranks and addresses from Slurm: one task per GPU, and the same numbers below as there.
#SBATCH --job-name=codetr
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

case " $* " in
    *" name="*) ;;
    *) echo "give name=NAME: all tasks write to runs/NAME, and resume from there" >&2; exit 2 ;;
esac
case " $* " in
    *" ckpt_path="*) echo "leave ckpt_path out: the job resumes where it stopped" >&2; exit 2 ;;
esac

# ckpt_path=last starts from the beginning where there is nothing to resume
status=0
srun codetr-train trainer=ddp trainer.num_nodes="${SLURM_NNODES:?run this by sbatch}" \
    trainer.devices="${SLURM_NTASKS_PER_NODE:?}" "$@" ckpt_path=last || status=$?
# 143: stopped by the signal, with a checkpoint; anything else is the end, good or bad
if [[ $status -eq 143 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
