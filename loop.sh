for i in $(seq 150); do cradle exec a true; done
