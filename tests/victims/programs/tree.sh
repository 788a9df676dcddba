# tree.sh FILES FUNCTIONS: sources of a program, and their Makefile.
: > main.c
for i in $(seq "$1"); do
    for f in $(seq "$2"); do
        echo "long f${i}_$f(long a, long b) { for (long i = 0; i < a; i++) { b = b * 31 + (i ^ a) % ($f + 1); if (b % 7 == $i % 7) a -= i; } return a + b; }"
    done > "part$i.c"
    echo "long part$i(long x) { return $(seq -f "f${i}_%.0f(x," -s ' ' "$2") x$(printf ')%.0s' $(seq "$2")); }" >> "part$i.c"
    echo "long part$i(long);" >> main.c
done
{
    echo '#include <stdio.h>'
    cat main.c
    echo 'int main(void) {'
    for i in $(seq "$1"); do echo "printf(\"%ld\\n\", part$i($i));"; done
    echo '}'
} > main2.c && mv main2.c main.c
printf 'objects = main.o %s\nprogram: $(objects)\n\tgcc -o $@ $^\n%%.o: %%.c\n\techo $@ >> out; gcc -O2 -c -o $@ $<\n' \
    "$(seq -f 'part%.0f.o' -s ' ' "$1")" > Makefile
