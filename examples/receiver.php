<?php
// Recebe os status das chamadas em PHP puro, sem biblioteca nenhuma (PHP 7.1 ou mais novo).
//
//   CALLBACK_SECRET=whsec_... php -S 127.0.0.1:8000 receiver.php
//
// CALLBACK_SECRET é o "segredo" que o cadastro da URL devolveu. Durante uma troca de segredo, informe os dois,
// separados por espaço.

declare(strict_types=1);

// Diferença máxima entre o relógio de quem envia e o nosso. Um POST mais velho pode ser a repetição de um antigo.
const TOLERANCIA_S = 300;

function responder(int $http, string $texto = ''): void
{
    http_response_code($http);
    header('Content-Type: text/plain; charset=utf-8');
    echo $texto;
    exit;
}

// O cabeçalho webhook-signature traz uma ou mais assinaturas, separadas por espaço: basta que uma confira.
function assinatura_confere(string $assinado, string $recebidas, array $segredos): bool
{
    foreach ($segredos as $segredo) {
        $chave = strpos($segredo, 'whsec_') === 0 ? base64_decode(substr($segredo, 6), true) : false;
        if ($chave === false || $chave === '') {
            continue; // não é um segredo; e com uma chave vazia qualquer um assinaria
        }
        $certa = 'v1,' . base64_encode(hash_hmac('sha256', $assinado, $chave, true));
        foreach (explode(' ', $recebidas) as $recebida) {
            if (hash_equals($certa, $recebida)) { // hash_equals, e não ==: leva o mesmo tempo, errada ou certa
                return true;
            }
        }
    }
    return false;
}

// O lugar do seu próprio código. Aqui: uma linha por status, na saída padrão ou num arquivo.
function tratar(array $status): void
{
    $linha = json_encode($status, JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES | JSON_THROW_ON_ERROR) . "\n";
    $arquivo = getenv('TOQUE_EXAMPLE_LOG') ?: 'php://stdout';
    if (file_put_contents($arquivo, $linha, FILE_APPEND) === false) {
        throw new RuntimeException('o status não foi gravado');
    }
}

// Até prova em contrário, deu errado: com display_errors ligado, o PHP responderia 200 a um erro no meio do caminho,
// e o status, dado por entregue, não voltaria mais.
http_response_code(500);

if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    header('Allow: POST');
    responder(405, 'somente POST');
}

$id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
$momento = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
$assinaturas = $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '';
$segredos = preg_split('/\s+/', (string) getenv('CALLBACK_SECRET'), -1, PREG_SPLIT_NO_EMPTY);

// A assinatura é do corpo como veio, e não de $_POST.
$corpo = file_get_contents('php://input');
if (!assinatura_confere("$id.$momento.$corpo", $assinaturas, $segredos)) {
    responder(401, 'assinatura não confere');
}
if (!ctype_digit($momento) || abs(time() - (int) $momento) > TOLERANCIA_S) {
    responder(401, 'assinado há tempo demais, ou no futuro');
}

$status = json_decode($_POST['data'] ?? '', true);
if (!is_array($status) || ($status['id'] ?? null) !== $id) {
    responder(400, 'data não é o JSON de um status');
}

// Um mesmo status pode chegar mais de uma vez, sempre com o mesmo id. Num sistema de verdade, grave $status['id'] numa
// coluna UNIQUE, na mesma transação do resto; se já existir, desfaça a transação e responda 204 assim mesmo.
tratar($status);
responder(204);
