"""Where programs run: this host, emulated boards, boards over ssh, phones over adb."""
