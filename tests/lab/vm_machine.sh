#!/usr/bin/env bash
# Debian machines with a kernel of their own under qemu: source it after machine.sh. Nothing is emulated but the processor,
# and that only where there is no KVM. A machine runs what lies on its second disk and ends.

LAB_PACKAGES=systemd,systemd-sysv,dbus,iproute2,kmod,containerd,runc,nftables,busybox-static,procps,initramfs-tools
LAB_PACKAGES+=,linux-image-cloud-$(dpkg --print-architecture),nfs-kernel-server,samba
VM_DISK=8G
# Without what an outer hypervisor may forbid to be set.
VM_PROCESSOR=max,-arch-capabilities

# Whether qemu can make a machine with KVM here: the device may be there and of no use.
kvm_works() {
  # Without these the kernel offers KVM and runs other kernels in it slower than qemu does.
  grep --quiet --extended-regexp --word-regexp 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]] || return 1
  timeout 10 qemu-system-x86_64 -M q35 -accel kvm -cpu "$VM_PROCESSOR" -m 64 -nodefaults -display none -S -qmp stdio >/dev/null 2>&1 <<'EOF'
{"execute": "qmp_capabilities"}
{"execute": "quit"}
EOF
}

# An emulated processor is slower than a real one, and two more so on a busy machine.
choose_accelerator() {
  if [[ -n ${TOFT_LAB_ACCELERATOR-} ]]; then
    VM_ACCELERATOR=$TOFT_LAB_ACCELERATOR
  elif kvm_works; then
    VM_ACCELERATOR=kvm
  else
    VM_ACCELERATOR=tcg,thread=multi,tb-size=1024
  fi
  # shellcheck disable=SC2034 # for whoever sources this
  case $VM_ACCELERATOR in
    kvm*) VM_SLOWNESS=2 ;;
    *) VM_SLOWNESS=5 ;;
  esac
}

# What the machine needs beyond its packages: it runs what lies on its second disk and ends.
prepare_root() {
  local root=$1 service
  cat >"$root/etc/systemd/system/lab-payload.service" <<'EOF'
[Unit]
Description=What the machine is started for
After=multi-user.target

[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
LimitNOFILE=65536
ExecStart=/bin/sh -c 'mount -o ro /dev/vdb /srv; /srv/run; echo "lab: the payload ended with $?"; systemctl poweroff --no-block'

[Install]
WantedBy=graphical.target
EOF
  mkdir -p "$root/etc/systemd/system/graphical.target.wants"
  ln -s ../lab-payload.service "$root/etc/systemd/system/graphical.target.wants/"
  ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
  # Tests start a containerd of their own, as where none runs, and their own servers of volumes.
  rm -f "$root/etc/systemd/system/multi-user.target.wants/containerd.service"
  for service in nfs-server.service rpcbind.service rpcbind.socket smbd.service nmbd.service samba-ad-dc.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$service"
  done
  echo vm >"$root/etc/hostname"
  printf '127.0.0.1 localhost vm\n::1 localhost\n' >"$root/etc/hosts"
}

# Prints the path of a disk with the root file system ROOT, making it first if it is missing.
vm_disk() {
  local root=$1
  (
    flock 9
    [[ ! -e $root.img ]] || exit 0
    lab_say "making the disk $root.img"
    rm -f "$root.img.partial"
    truncate --size "$VM_DISK" "$root.img.partial"
    mke2fs -q -t ext4 -d "$root" "$root.img.partial" && mv "$root.img.partial" "$root.img"
  ) 9>"$LAB_CACHE/lock" || return 1
  echo "$root.img"
}

# Puts the command that boots a machine into VM_COMMAND; what the machine says goes to standard output: vm_command ROOT
vm_command() {
  local kernel initrd
  kernel=$(find "$1/boot" -name 'vmlinuz-*' | sort | tail -n 1)
  initrd=$(find "$1/boot" -name 'initrd.img-*' | sort | tail -n 1)
  # shellcheck disable=SC2034 # for whoever sources this
  VM_COMMAND=(qemu-system-x86_64 -M q35 -accel "$VM_ACCELERATOR" -cpu "$VM_PROCESSOR" -smp 2
    -kernel "$kernel" -initrd "$initrd" -append "root=/dev/vda rw console=ttyS0 quiet panic=-1"
    -nodefaults -nographic -serial stdio -no-reboot)
}
