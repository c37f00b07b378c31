"""Certificates of a test's own authority, by the openssl command."""
import os
import subprocess


def certificates(folder):
    """A CA, a server certificate for localhost and a client certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    run = lambda *a: subprocess.run(["openssl", *a], cwd=folder, check=True, capture_output=True)
    run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.crt")
    for name, subject in (("server", "/CN=localhost"), ("client", "/CN=worker")):
        (folder / f"{name}.ext").write_text("subjectAltName=DNS:localhost\n")
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")
        os.chmod(folder / f"{name}.key", 0o600)
    return folder


def expire(folder, name="server"):
    """A certificate of certificates() anew, of the same authority, that ended yesterday."""
    subprocess.run(["openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey",
                    "ca.key", "-CAcreateserial", "-days", "-1", "-extfile", f"{name}.ext", "-out",
                    f"{name}.crt"], cwd=folder, check=True, capture_output=True)
    return folder
