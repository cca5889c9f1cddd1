# Bakes the fixed machine image. Called through python-packer by livemount.image.bake; no plugin is needed, so no `packer init`.

variable "python" {
  type    = string
  default = "python3"
}

variable "ipxe" {
  type        = string
  description = "Folder with ipxe.lkrn and ipxe.efi."
}

variable "script" {
  type        = string
  description = "The script to embed."
}

variable "output" {
  type        = string
  description = "The raw disk image to write."
}

variable "manifest" {
  type = string
}

source "null" "machine-image" {
  communicator = "none"
}

build {
  sources = ["source.null.machine-image"]

  post-processors {
    post-processor "shell-local" {
      environment_vars = [
        "LKRN=${var.ipxe}/ipxe.lkrn",
        "EFI=${var.ipxe}/ipxe.efi",
        "SCRIPT=${var.script}",
        "OUTPUT=${var.output}",
      ]
      inline = ["'${var.python}' -m livemount.image.disk --lkrn \"$LKRN\" --efi \"$EFI\" --script \"$SCRIPT\" --output \"$OUTPUT\""]
    }
    post-processor "artifice" {
      files = [var.output]
    }
    post-processor "manifest" {
      output = var.manifest
    }
  }
}
