# Hashes, regular expressions, sorting, random numbers; a line each step.
use strict; use warnings;
use Digest::MD5 qw(md5_hex);
$| = 1;
srand(7);
my (%seen, @last);
for my $step (1 .. 800) {
    for (1 .. 1500) {
        my $word = join '', map { chr(97 + int rand 26) } 1 .. 3;
        $seen{$word}++ if $word =~ /^[^q]*[aeiou][^q]*$/;
    }
    @last = sort { $seen{$b} <=> $seen{$a} || $a cmp $b } keys %seen;
    print "$step ", scalar(@last), " $last[0] ", md5_hex(join ' ', map { "$_$seen{$_}" } @last), "\n";
}
